//! Writes a layout and a tree into a sparse raw file.
