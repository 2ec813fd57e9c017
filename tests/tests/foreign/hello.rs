//! A ClientHello by hand.

/// A ClientHello that a client of TLS 1.2 sends: no supported_versions, no key share (RFC 5246 7.4.1.2).
pub(crate) fn tls12_hello() -> Vec<u8> {
    let with_length = |bytes: &[u8]| {
        [
            &u16::try_from(bytes.len()).unwrap_or_default().to_be_bytes()[..],
            bytes,
        ]
        .concat()
    };
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_length(body)].concat();
    let groups = extension(10, &with_length(&[0, 29, 0, 23]));
    let signatures = extension(13, &with_length(&[4, 3, 8, 4, 4, 1]));
    let alpn = extension(16, &with_length(b"\x02h2"));
    let suites = with_length(&[0xc0, 0x2b, 0xc0, 0x2f]);
    let head: [&[u8]; 4] = [&[3, 3], &[7; 32], &[0], &suites];
    let extensions = with_length(&[groups, signatures, alpn].concat());
    let hello = [&head.concat()[..], &[1, 0], &extensions].concat();
    let handshake = [&[1, 0][..], &with_length(&hello)].concat();
    [&[0x16, 3, 1][..], &with_length(&handshake)].concat()
}
