//! A configured package tree and a system make the tree of the image.
