//! The reference of all fields, made from the contracts.
