//! What a status comes to.
