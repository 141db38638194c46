use super::*;

#[tokio::test]
async fn workers_share_a_port_that_nobody_else_gets() {
    let sockets = listen(([127, 0, 0, 1], 0).into(), 3).unwrap();
    let address = sockets[0].local_addr().unwrap();
    assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
    let taken = listen(address, 2).expect_err("a second gateway of the same user");
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);

    // The kernel spreads senders over all of them.
    let mut reached = [false; 3];
    for _ in 0..200 {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"x", address).unwrap();
        for (socket, reached) in sockets.iter().zip(&mut reached) {
            let mut buffer = [0; 4];
            *reached |= socket.recv_from(&mut buffer).is_ok();
        }
    }
    assert_eq!(reached, [true; 3]);
}

#[test]
fn ids_name_their_worker_and_are_known_again() {
    let keys = crate::link::keys::Keys::ephemeral();
    let mut ids = WorkerIds::new(3, keys.connection_id());
    let id = ids.generate_cid();
    assert_eq!((id[0], id.len()), (3, CID_LEN));
    assert!(ids.validate(&id).is_ok());
    assert!(WorkerIds::new(1, keys.connection_id()).validate(&id).is_ok(), "any worker of the gateway knows it");
    assert!(WorkerIds::new(3, crate::link::keys::Keys::ephemeral().connection_id()).validate(&id).is_err());
    assert!(ids.validate(&ConnectionId::new(&[3; CID_LEN])).is_err());
    assert!(ids.validate(&ConnectionId::new(&[3; 2])).is_err());
}

fn meta(len: usize, stride: usize) -> RecvMeta {
    RecvMeta { len, stride, ..RecvMeta::default() }
}

fn short(worker: u8, fill: u8, len: usize) -> Vec<u8> {
    let mut datagram = vec![fill; len];
    datagram[0] = 0x40;
    datagram[1] = worker;
    datagram
}

#[tokio::test]
async fn packets_of_another_worker_are_handed_over_one_by_one() {
    let steering = Steering::new(2);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket =
        LinkSocket::new(register(socket).unwrap(), Some((0, Arc::clone(&steering))), 1500, LargestSent::new(1500));

    // One buffer of three segments, the middle one of worker 1; one wholly of worker 1; one long header.
    let mixed = [short(0, 1, 20), short(1, 2, 20), short(0, 3, 15)].concat();
    let foreign = short(1, 4, 30);
    let long = vec![0xc1; 40];
    let mut buffers: Vec<Vec<u8>> = vec![mixed, foreign.clone(), long.clone()];
    let mut metas = [meta(55, 20), meta(30, 30), meta(40, 40)];
    buffers.iter_mut().for_each(|buffer| buffer.resize(64, 0));
    let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();

    assert_eq!(socket.hand_over(3, &mut slices, &mut metas), 2);
    assert_eq!((metas[0].len, metas[0].stride), (35, 20));
    assert_eq!(slices[0][..35], [short(0, 1, 20), short(0, 3, 15)].concat());
    assert_eq!(slices[1][..metas[1].len], long);

    let mut space = [[0; 64], [0; 64], [0; 64]];
    let mut slices: Vec<IoSliceMut<'_>> = space.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
    let taken = steering.inboxes[1].take(&mut slices, &mut metas);
    assert_eq!(taken, 2);
    assert_eq!(slices[0][..metas[0].len], short(1, 2, 20));
    assert_eq!(slices[1][..metas[1].len], foreign);
}

#[tokio::test]
async fn batches_stay_below_the_largest_datagram() {
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let jumbo = LinkSocket::new(register(socket()).unwrap(), None, 8900, LargestSent::new(8900));
    assert!(jumbo.max_transmit_segments() <= 7);
    let usual = LinkSocket::new(register(socket()).unwrap(), None, 8900, LargestSent::new(1452));
    assert!(usual.max_transmit_segments() <= 45);
}
