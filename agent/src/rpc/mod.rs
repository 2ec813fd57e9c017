//! gRPC between agents and the controller: the messages, and the TLS connection that both services share.
