//! What is locked, and whether it still satisfies the profile.
