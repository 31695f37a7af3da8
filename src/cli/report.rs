//! Failures as users see them.
