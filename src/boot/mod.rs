//! What makes a tree boot: kernel command line, GRUB configuration, the ESP's files.
