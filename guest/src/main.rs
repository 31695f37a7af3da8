//! The guest's side of Kiln.

fn main() {}
