"""Faces on disk: image folders, LFW, RecordIO files and verification packs, in two forms: `Pictures` and `Pairs`."""
