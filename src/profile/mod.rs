//! Profiles: Nickel in, a [`crate::system::System`] out.
