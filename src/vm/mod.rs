//! Virtual machines: QEMU's command line as data, serial console, QMP.
