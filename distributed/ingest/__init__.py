"""Raw data into tables: COCO, MPII, Leeds, folders of images, and the synthetic fleet."""
