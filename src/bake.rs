//! The phases of a bake, chained; their cache keys.
