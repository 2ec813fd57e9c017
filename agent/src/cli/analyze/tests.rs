//! Manifests as people have them, from the command line to what is printed.
