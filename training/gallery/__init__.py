"""The gallery: small models, trained here, whose pictures and figures make docs/gallery.md."""
