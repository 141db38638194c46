//! A client's socket, with the bytes that detection has read in front.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Room for one read of [`ClientIo::fill`]: a request head or a ClientHello with post-quantum shares fits.
const FILL: usize = 2048;

/// The socket of a local client: plain TCP, or TLS that ends here (the mTLS port).
///
/// Bytes read by [`ClientIo::fill`] are not lost: reads yield them first.
#[derive(Debug)]
pub struct ClientIo {
    prefix: BytesMut,
    stream: Stream,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    /// Boxed: a TLS session is a kilobyte, and most connections have none.
    Tls(Box<TlsStream<TcpStream>>),
}

impl ClientIo {
    /// A plain socket.
    #[must_use]
    pub fn tcp(stream: TcpStream) -> Self {
        Self { prefix: BytesMut::new(), stream: Stream::Tcp(stream) }
    }

    /// A TLS session whose handshake is done.
    #[must_use]
    pub fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self { prefix: BytesMut::new(), stream: Stream::Tls(Box::new(stream)) }
    }

    /// Reads once more behind the prefix; 0 is the client's FIN. Cancel-safe.
    pub async fn fill(&mut self) -> io::Result<usize> {
        self.prefix.reserve(FILL);
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read_buf(&mut self.prefix).await,
            Stream::Tls(stream) => stream.read_buf(&mut self.prefix).await,
        }
    }

    /// What [`Self::fill`] has read and nobody has consumed yet.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Consumes the prefix, uncopied.
    pub fn take_prefix(&mut self) -> Bytes {
        std::mem::take(&mut self.prefix).freeze()
    }

    /// Puts back what was taken by [`Self::take_prefix`] and read since; nothing may have been left in front.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        debug_assert!(self.prefix.is_empty(), "bytes change their order");
        self.prefix = BytesMut::from(bytes);
    }

    /// Small writes leave at once: requests and replies are often smaller than a segment.
    pub(super) fn set_nodelay(&self) {
        // Fails only on a socket that is no more; the first read will tell.
        drop(self.socket().set_nodelay(true));
    }

    /// Closes with RST, so that the client sees a cut and never a clean end.
    pub fn reset(self) {
        // Fails only on a socket that is no more, which needs no RST.
        drop(self.socket().set_zero_linger());
    }

    /// The plain socket again, for the TLS acceptor of the mTLS port.
    ///
    /// # Errors
    /// Gives `self` back when it is TLS already or bytes were read from it.
    pub fn into_tcp(self) -> Result<TcpStream, Box<Self>> {
        match self {
            Self { prefix, stream: Stream::Tcp(stream) } if prefix.is_empty() => Ok(stream),
            other => Err(Box::new(other)),
        }
    }
}

impl ClientIo {
    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Tcp(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let taken = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..taken]);
            self.prefix.advance(taken);
            if self.prefix.is_empty() {
                // Gives its memory back: most connections live long after detection.
                self.prefix = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
