//! Secrets of the transport that must survive a restart: a peer whose gateway was killed learns it from a stateless
//! reset, within one round trip, only if the new process can compute the old one's reset tokens (F-01).
//!
//! One seed, from which each key is derived for one purpose. None of them protects traffic: whoever has them can end
//! connections, not read them.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::{hmac, rand};

const SEED_LEN: usize = 32;

/// The transport's secrets.
#[derive(Clone)]
pub struct Keys {
    seed: [u8; SEED_LEN],
}

impl Keys {
    /// Reads the seed, or makes one and keeps it with mode 0600.
    ///
    /// # Errors
    /// When the file cannot be read or written, or has another length.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => {
                let seed = bytes.try_into().map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, "the seed file does not hold 32 bytes; remove it")
                })?;
                Ok(Self { seed })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let keys = Self::ephemeral();
                // Whole or not at all: half a seed would be none, at every start from now on.
                let fresh = path.with_extension("new");
                let mut file =
                    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
                file.write_all(&keys.seed)?;
                file.sync_all()?;
                fs::rename(&fresh, path)?;
                Ok(keys)
            }
            Err(error) => Err(error),
        }
    }

    /// Keys that are forgotten at the end of the process.
    #[must_use]
    pub fn ephemeral() -> Self {
        let mut seed = [0; SEED_LEN];
        rand::fill(&mut seed).expect("the operating system gives random bytes");
        Self { seed }
    }

    /// Authenticates stateless resets.
    pub(super) fn reset(&self) -> Arc<hmac::Key> {
        Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.derive(b"stateless reset")))
    }

    /// Marks connection ids as ours.
    pub(super) fn connection_id(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.derive(b"connection id"))
    }

    /// Seals retry and address validation tokens.
    pub(super) fn token(&self) -> Arc<Prk> {
        Arc::new(Salt::new(HKDF_SHA256, b"linkspan token").extract(&self.derive(b"token")))
    }

    /// A stable name of this gateway inside its cluster.
    #[must_use]
    pub fn gateway_id(&self) -> String {
        self.derive(b"gateway id").iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    fn derive(&self, purpose: &[u8]) -> [u8; SEED_LEN] {
        let mut key = [0; SEED_LEN];
        Salt::new(HKDF_SHA256, b"linkspan link")
            .extract(&self.seed)
            .expand(&[purpose], HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("32 bytes are within what HKDF-SHA256 gives");
        key
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets never reach a log.
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_same_file_gives_the_same_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        let first = Keys::load_or_create(&path).unwrap();
        let again = Keys::load_or_create(&path).unwrap();
        assert_eq!(first.gateway_id(), again.gateway_id());
        assert_eq!(first.derive(b"x"), again.derive(b"x"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn purposes_have_keys_of_their_own() {
        let keys = Keys::ephemeral();
        assert_ne!(keys.derive(b"stateless reset"), keys.derive(b"connection id"));
        assert_ne!(keys.gateway_id(), Keys::ephemeral().gateway_id());
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        fs::write(&path, b"short").unwrap();
        assert_eq!(Keys::load_or_create(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
