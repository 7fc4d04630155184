"""How work is spread: Ray, Arrow and storage live here and only here."""
