//! Opens streams to peers: on this worker's own connection where there is one, else on another's.
//!
//! - In: a peer, the worker that asks.
//! - Out: both halves of a stream, or why there is none; then nothing was sent, and another cluster may be tried.
//! - Refuses when: there is no connection, the peer's credit is used up for long, memory is short (`Overloaded`).

use linkspan_proto::names::ClusterName;

use super::pool::Links;
use super::{Association, OpenError, RecvHalf, SendHalf, datagrams};

impl Links {
    /// Opens a stream to a peer, on a connection of this worker if there is one. Never waits for a link to come up; waits
    /// for stream credit for at most [`OPEN_TIMEOUT`](super::OPEN_TIMEOUT).
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing was sent: another cluster may be tried.
    pub async fn open(&self, worker: usize, peer: &ClusterName) -> Result<(SendHalf, RecvHalf), OpenError> {
        if self.0.config.shortage.is_short() {
            return Err(OpenError::Overloaded);
        }
        self.open_anyway(worker, peer).await
    }

    /// The same for what the link itself cannot do without.
    pub(super) async fn open_anyway(
        &self,
        worker: usize,
        peer: &ClusterName,
    ) -> Result<(SendHalf, RecvHalf), OpenError> {
        let link = self.0.peer(peer).ok_or(OpenError::UnknownPeer)?;
        let connections = link.connections.load_full();
        let first = link.pick(&connections, worker).ok_or(OpenError::NotConnected)?;
        if let Some(Ok(opened)) = first.try_open() {
            return Ok(opened);
        }
        // Out of credit or just lost: any other connection serves before anybody waits.
        for other in connections.iter().filter(|other| other.id != first.id) {
            if let Some(Ok(opened)) = other.try_open() {
                return Ok(opened);
            }
        }
        first.open().await
    }

    /// Opens an association of datagrams to a peer: a stream, and the datagrams beside it on the same connection.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing was sent: another cluster may be tried. Of what a connection permits, associations get a
    /// part, and are refused as `Overloaded` beyond that, without waiting.
    pub async fn associate(
        &self,
        worker: usize,
        peer: &ClusterName,
    ) -> Result<(SendHalf, RecvHalf, Association), OpenError> {
        let link = self.0.peer(peer).ok_or(OpenError::UnknownPeer)?;
        let connections = link.connections.load_full();
        let first = link.pick(&connections, worker).ok_or(OpenError::NotConnected)?;
        let others = connections.iter().filter(|other| other.id != first.id);
        let connection = std::iter::once(first).chain(others).find(|connection| !datagrams::is_full(connection));
        let connection = connection.filter(|_| !self.0.config.shortage.is_short()).ok_or(OpenError::Overloaded)?;
        if connection.quinn.max_datagram_size().is_none() {
            return Err(OpenError::NoDatagrams);
        }
        let (send, recv) = match connection.try_open() {
            Some(opened) => opened?,
            None => connection.open().await?,
        };
        let association = Association::outbound(connection, recv.stream_id());
        Ok((send, recv, association))
    }
}
