//! Runs programs inside a tree without privilege.
