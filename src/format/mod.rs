//! On-disk formats: structures apart from their writers.
