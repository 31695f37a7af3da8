//! Raw images into other formats: qcow2.
