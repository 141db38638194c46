//! One connect, under a budget.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::{CONNECT_BUDGET, DialError};

/// Connects within [`CONNECT_BUDGET`]. `TCP_NODELAY` is set.
///
/// # Errors
/// Each failure as what it means for the choice of endpoints.
pub async fn connect(address: SocketAddr) -> Result<TcpStream, DialError> {
    let stream = match tokio::time::timeout(CONNECT_BUDGET, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(DialError::from_io(address, &error)),
        Err(_) => return Err(DialError::Timeout(address)),
    };
    // Fails only on a socket that is no more; the first write will tell.
    drop(stream.set_nodelay(true));
    Ok(stream)
}
