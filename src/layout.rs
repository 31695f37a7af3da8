//! Sizes in, a partition table with offsets and GUIDs out.
