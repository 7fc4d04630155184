"""The work on tables, stores and clusters: Ray, Arrow and storage live here and only here."""
