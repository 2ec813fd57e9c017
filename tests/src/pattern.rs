//! Bytes that tell where they belong: a stream in which every eight bytes follow from their position, so that a byte
//! lost, doubled, swapped or changed is found, and where.

use std::io::{self, Read, Write};

/// How much is written or read at a time.
const CHUNK: usize = 256 * 1024;

/// Fills `buffer` with the stream of `seed` from `position` on, which must be a multiple of 8.
pub fn fill(buffer: &mut [u8], seed: u64, position: u64) {
    for (word, index) in buffer.chunks_mut(8).zip(position / 8..) {
        word.copy_from_slice(&mixed(seed, index).to_le_bytes()[..word.len()]);
    }
}

/// Neighbouring numbers to unrelated ones: the finaliser of a common 64-bit hash.
fn mixed(seed: u64, index: u64) -> u64 {
    let mut word = index.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Writes the first `length` bytes of the stream of `seed`.
pub fn send(to: &mut impl Write, seed: u64, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < length {
        let size = usize::try_from(length - position).map_or(CHUNK, |left| left.min(CHUNK));
        fill(&mut buffer[..size], seed, position);
        to.write_all(&buffer[..size])?;
        position += size as u64;
    }
    Ok(())
}

/// Reads to the end and checks every byte against the stream of `seed`; the number of bytes, or where the first wrong
/// one is.
pub fn check(from: &mut impl Read, seed: u64) -> io::Result<u64> {
    let (mut found, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut position = 0;
    loop {
        let size = read_full(from, &mut found)?;
        fill(&mut wanted[..size], seed, position);
        if found[..size] != wanted[..size] {
            let at = found
                .iter()
                .zip(&wanted)
                .position(|(found, wanted)| found != wanted)
                .unwrap_or(size);
            let message = format!("byte {} of the stream is wrong", position + at as u64);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        position += size as u64;
        if size < CHUNK {
            return Ok(position);
        }
    }
}

/// Fills the buffer, or stops at the end of the stream.
fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut size = 0;
    while size < buffer.len() {
        match from.read(&mut buffer[size..]) {
            Ok(0) => break,
            Ok(read) => size += read,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_checks_out_and_damage_is_found() {
        let length = CHUNK as u64 * 2 + 13;
        let mut stream = Vec::new();
        send(&mut stream, 7, length).expect("write to memory");
        assert_eq!(check(&mut stream.as_slice(), 7).expect("intact"), length);
        assert!(check(&mut stream.as_slice(), 8).is_err());
        stream.remove(CHUNK + 5);
        let err = check(&mut stream.as_slice(), 7).expect_err("a byte is missing");
        assert!(err.to_string().contains(&format!("byte {}", CHUNK + 5)), "{err}");
    }
}
