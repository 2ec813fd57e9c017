//! What is made for a Gateway, what is done about what is there, and what the Gateway says of it.
