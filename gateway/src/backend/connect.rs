//! One connect, under a budget.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::{CONNECT_BUDGET, DialError};

/// Connects within [`CONNECT_BUDGET`]. `TCP_NODELAY` is set. A connect that is given up looks cut to a backend that has it
/// already: an end in order would say that the client had nothing to say.
///
/// # Errors
/// Each failure as what it means for the choice of endpoints.
pub async fn connect(address: SocketAddr) -> Result<TcpStream, DialError> {
    let stream = match tokio::time::timeout(CONNECT_BUDGET, open(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(DialError::from_io(address, &error)),
        Err(_) => return Err(DialError::Timeout(address)),
    };
    // From here on its owner says how it ends. Both fail only on a socket that is no more; the first write will tell.
    drop(SockRef::from(&stream).set_linger(None));
    drop(stream.set_nodelay(true));
    Ok(stream)
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_zero_linger()?;
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connect_that_is_given_up_looks_cut_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        {
            // The kernel shakes hands at once; the future is not asked again.
            let mut connecting = pin!(connect(address));
            assert!(poll_fn(|cx| Poll::Ready(connecting.as_mut().poll(cx).is_pending())).await);
        }
        let (mut given_up, _) = listener.accept().await.unwrap();
        assert_eq!(given_up.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

        drop(connect(address).await.unwrap());
        let (mut ended, _) = listener.accept().await.unwrap();
        assert_eq!(ended.read(&mut [0]).await.unwrap(), 0);
    }
}
