"""The papers' tables: methods side by side on one domain of concepts."""
