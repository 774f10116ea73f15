"""The files that are checked: found, examined once, remembered, mended."""
