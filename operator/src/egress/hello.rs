//! The first bytes of a TLS connection: which name they ask for. Pure.

use std::io::Read;

use rustls::server::Acceptor;

/// No hello is longer: those of browsers with post-quantum keys are about two kilobytes.
pub(super) const LONGEST: usize = 16 << 10;
/// encrypted_client_hello (RFC 9849): what it asks for cannot be seen.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// Why a hello is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHello {
    /// Not TLS, or broken, or too long.
    NotTls,
    /// It names nobody.
    NoName,
    /// It names somebody else than the CONNECT did.
    OtherName,
    /// The name it really asks for is encrypted.
    Encrypted,
}

/// Judges what a connection has sent so far: `None` if the hello is not whole yet.
///
/// # Errors
/// Why nothing of it may go out.
pub(super) fn judge(bytes: &[u8], name: &str) -> Result<Option<()>, BadHello> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    let accepted = loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) if rest.is_empty() && bytes.len() < LONGEST => return Ok(None),
            Ok(None) if rest.is_empty() => return Err(BadHello::NotTls),
            Ok(None) => {
                let reader: &mut dyn Read = &mut rest;
                acceptor.read_tls(reader).map_err(|_| BadHello::NotTls)?;
            }
            Err(_) => return Err(BadHello::NotTls),
        }
    };
    let asked = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
    match asked {
        None => return Err(BadHello::NoName),
        Some(asked) if asked != name => return Err(BadHello::OtherName),
        Some(_) => {}
    }
    // rustls has read it as a whole hello; that it has no word for this one extension is why it is looked for here.
    let extensions = extensions(bytes).ok_or(BadHello::NotTls)?;
    if extensions.contains(&ENCRYPTED_CLIENT_HELLO) {
        return Err(BadHello::Encrypted);
    }
    Ok(Some(()))
}

/// The types of the extensions of a whole ClientHello (RFC 8446, sections 4.1.2 and 5.1); `None` if it is none.
fn extensions(bytes: &[u8]) -> Option<Vec<u16>> {
    // A hello may be cut into several records.
    let mut records = Input(bytes);
    let mut handshake = vec![];
    while !records.0.is_empty() {
        let (kind, _version) = (records.byte()?, records.take(2)?);
        let Some(payload) = records.long() else { break };
        if kind != 22 {
            break;
        }
        handshake.extend_from_slice(payload);
    }
    let mut hello = Input(&handshake);
    if hello.byte()? != 1 {
        return None;
    }
    let length = usize::from(hello.byte()?) << 16 | usize::from(hello.two()?);
    let mut hello = Input(hello.take(length)?);
    let _version_and_random = hello.take(34)?;
    let _session = hello.short()?;
    let _cipher_suites = hello.long()?;
    let _compression = hello.short()?;
    let mut list = Input(hello.long()?);
    let mut types = vec![];
    while !list.0.is_empty() {
        types.push(list.two()?);
        list.long()?;
    }
    Some(types)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn two(&mut self) -> Option<u16> {
        self.take(2).map(|taken| u16::from_be_bytes([taken[0], taken[1]]))
    }

    /// A vector whose length is one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(usize::from(length))
    }

    /// A vector whose length is two bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.two()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};

    use super::*;

    /// What rustls' own client sends first.
    fn hello(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = vec![];
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// An outer hello's extension (RFC 9849, section 5): type, suite, config id, empty `enc`, a payload of one byte.
    const OUTER: [u8; 11] = [0, 0, 1, 0, 1, 7, 0, 0, 0, 1, 9];

    /// The same with one more extension.
    fn with_extension(hello: &[u8], kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = hello.to_vec();
        let length = u16::try_from(body.len()).unwrap();
        bytes.extend_from_slice(&[kind.to_be_bytes(), length.to_be_bytes()].concat());
        bytes.extend_from_slice(body);
        let grow = |bytes: &mut Vec<u8>, at: usize| {
            let length = u16::from_be_bytes([bytes[at], bytes[at + 1]]) + 4 + length;
            bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        };
        // The record, the handshake (its low two bytes), and the list of extensions.
        grow(&mut bytes, 3);
        grow(&mut bytes, 7);
        let session = 5 + 4 + 34;
        let suites = session + 1 + usize::from(bytes[session]);
        let compression = suites + 2 + usize::from(u16::from_be_bytes([bytes[suites], bytes[suites + 1]]));
        let list = compression + 1 + usize::from(bytes[compression]);
        grow(&mut bytes, list);
        bytes
    }

    /// The same cut into records of a few bytes each.
    fn in_small_records(hello: &[u8]) -> Vec<u8> {
        let pieces = hello[5..].chunks(40);
        pieces
            .flat_map(|piece| [&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap()], piece].concat())
            .collect()
    }

    #[test]
    fn a_hello_for_the_name_passes_once_it_is_whole() {
        let bytes = hello("api.example.com");
        for cut in [0, 1, 5, 50, bytes.len() - 1] {
            assert_eq!(judge(&bytes[..cut], "api.example.com"), Ok(None), "{cut}");
        }
        assert_eq!(judge(&bytes, "api.example.com"), Ok(Some(())));
        assert_eq!(judge(&in_small_records(&bytes), "api.example.com"), Ok(Some(())));
    }

    #[test]
    fn a_hello_for_another_name_or_for_none_does_not() {
        assert_eq!(
            judge(&hello("evil.example"), "api.example.com"),
            Err(BadHello::OtherName)
        );
        assert_eq!(
            judge(&hello("10.0.0.1"), "api.example.com"),
            Err(BadHello::NoName)
        );
        assert_eq!(
            judge(b"GET / HTTP/1.1\r\n\r\n", "api.example.com"),
            Err(BadHello::NotTls)
        );
        assert_eq!(judge(&[22, 3, 1, 255, 255], "a.example"), Err(BadHello::NotTls));
    }

    #[test]
    fn a_name_that_is_encrypted_does_not() {
        let bytes = with_extension(&hello("api.example.com"), ENCRYPTED_CLIENT_HELLO, &OUTER);
        assert_eq!(judge(&bytes, "api.example.com"), Err(BadHello::Encrypted));
        assert_eq!(
            judge(&in_small_records(&bytes), "api.example.com"),
            Err(BadHello::Encrypted)
        );
        let other = with_extension(&hello("api.example.com"), 0xfefe, &[]);
        assert_eq!(judge(&other, "api.example.com"), Ok(Some(())));
    }

    #[test]
    fn no_bytes_make_it_panic_or_pass() {
        let bytes = hello("api.example.com");
        for at in 0..bytes.len() {
            for value in [0, 1, 127, 255] {
                let mut broken = bytes.clone();
                broken[at] = value;
                // Whatever it says of a broken hello, it has the name that was asked for if it passes.
                if judge(&broken, "evil.example").is_ok_and(|judged| judged.is_some()) {
                    panic!("byte {at} set to {value} passes for another name");
                }
                let _ = extensions(&broken);
            }
        }
    }
}
