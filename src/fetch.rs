//! Downloads: mirrors in turn, resume, verification by digest.
