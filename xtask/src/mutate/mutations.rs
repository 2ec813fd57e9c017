//! The mutations: each breaks one promise of safety in one place. A text must be in its file exactly once, so that code
//! that moves on takes its mutation along or fails loudly.

/// One way to break a promise.
pub(super) struct Mutation {
    /// What to call it.
    pub(super) name: &'static str,
    /// The promise that it breaks.
    pub(super) promise: &'static str,
    /// From the root of the checkout.
    pub(super) file: &'static str,
    /// The code, once in the file.
    pub(super) find: &'static str,
    /// What stands there instead.
    pub(super) replace: &'static str,
    /// The test binary, as `test` titles it.
    pub(super) target: &'static str,
    /// The test that must notice, in full.
    pub(super) test: &'static str,
}

/// All of them.
pub(super) const MUTATIONS: [Mutation; 6] = [
    Mutation {
        name: "open-without-agent",
        promise: "a captured pod takes nothing in clear when its agent is gone",
        file: "agent-ebpf/src/main.rs",
        find: "let _ = error;\n            SK_DROP",
        replace: "let _ = error;\n            SK_PASS",
        target: "tests/fail_closed",
        test: "a_captured_pod_without_an_agent_refuses_plaintext",
    },
    Mutation {
        name: "any-server",
        promise: "a client speaks only to the identity that the mesh gives for an endpoint",
        file: "agent/src/net/tls/identity.rs",
        find: "if self.accept.contains(&presented) {",
        replace: "if !self.accept.is_empty() {",
        target: "tests/impostor",
        test: "a_server_with_a_valid_certificate_of_another_service_account_gets_no_byte",
    },
    Mutation {
        name: "deny-ignored",
        promise: "a DENY policy refuses, whatever else allows",
        file: "agent/src/mesh/authorize.rs",
        find: "enforced(Action::Deny).find(|policy| policy_matches(policy, &conn))",
        replace: "enforced(Action::Deny).find(|_| false)",
        target: "tests/policy",
        test: "deny_is_enforced_before_allow",
    },
    Mutation {
        name: "loopback-peer",
        promise: "an app is dialled by nobody of whom the kernel has no note",
        file: "agent-ebpf/src/handshake.rs",
        find: "// SAFETY: only whether there is one.\n        return unsafe { BEHALF.get(syn) }.is_none();",
        replace: "return false;",
        target: "tests/handshakes",
        test: "a_client_that_the_kernel_cannot_note_is_reset_and_the_app_never_sees_anybody",
    },
    Mutation {
        name: "dns-open-without-agent",
        promise: "a captured pod asks no DNS server when its agent is gone",
        file: "agent-ebpf/src/dns.rs",
        find: "Err(_) => SK_DROP,",
        replace: "Err(_) => SK_PASS,",
        target: "tests/dns_capture",
        test: "an_app_of_the_pod_does_not_get_its_queries",
    },
    Mutation {
        name: "dns-lies",
        promise: "only the answer to the very question is believed",
        file: "agent/src/dns/forward.rs",
        find: "unread || response.is_answer(query)",
        replace: "unread || header.qr()",
        target: "tests/dns_forward",
        test: "only_the_answer_to_the_very_question_is_believed",
    },
];
