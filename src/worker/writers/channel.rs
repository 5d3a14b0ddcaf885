//! The way from the leader to a writer and back: PostgreSQL's message queues in a segment of shared memory.
//!
//! It never waits on the leader's side. Whichever process ends, the other is told.

use pgrx::pg_sys;

/// Bytes of the queue of orders: two of them fit, as the leader makes them, so that a writer finds the next one when
/// it has done one, whatever the leader does meanwhile.
const ORDERS: usize = 1024 * 1024;
/// Bytes of the queue of answers; longer ones go in pieces.
const ANSWERS: usize = 16 * 1024;

/// Bytes of an order's vectors.
pub const ORDER: usize = ORDERS * 3 / 8;

/// One side of the way. Dropped, it is closed.
pub struct Channel {
    segment: *mut pg_sys::dsm_segment,
    outgoing: *mut pg_sys::shm_mq_handle,
    incoming: *mut pg_sys::shm_mq_handle,
}

pub enum Received {
    Message(Vec<u8>),
    /// Nothing yet: this process's latch will be set.
    Nothing,
    /// The other side has ended.
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    Whole,
    /// There is no room for all of it: the same message has to be given again once this process's latch is set.
    InPart,
    /// The other side has ended.
    Gone,
}

impl Channel {
    /// The leader's side of a new way; `None` where the server has no segment left. Inside a transaction, whose
    /// abort removes it.
    pub fn create() -> Option<Channel> {
        // SAFETY: a segment of our own, large enough for both queues, which nobody else knows of yet; the sizes are
        // multiples of MAXALIGN.
        unsafe {
            let segment = pg_sys::dsm_create(
                ORDERS + ANSWERS,
                pg_sys::DSM_CREATE_NULL_IF_MAXSEGMENTS as _,
            );
            if segment.is_null() {
                return None;
            }
            let memory = pg_sys::dsm_segment_address(segment);
            let orders = pg_sys::shm_mq_create(memory, ORDERS);
            let answers = pg_sys::shm_mq_create(memory.byte_add(ORDERS), ANSWERS);
            pg_sys::shm_mq_set_sender(orders, pg_sys::MyProc);
            pg_sys::shm_mq_set_receiver(answers, pg_sys::MyProc);
            let channel = Channel::attach(segment, orders, answers);
            pg_sys::dsm_pin_mapping(segment); // not the transaction's any more
            Some(channel)
        }
    }

    /// The writer's side, by what [`Channel::handle`] gave; `None` where the leader has gone.
    pub fn open(handle: u32) -> Option<Channel> {
        // SAFETY: before any transaction the mapping belongs to the process; the layout is that of `create`.
        unsafe {
            let segment = pg_sys::dsm_attach(handle);
            if segment.is_null() {
                return None;
            }
            let orders = pg_sys::dsm_segment_address(segment);
            let answers = orders.byte_add(ORDERS).cast();
            let orders = orders.cast();
            pg_sys::shm_mq_set_receiver(orders, pg_sys::MyProc);
            pg_sys::shm_mq_set_sender(answers, pg_sys::MyProc);
            Some(Channel::attach(segment, answers, orders))
        }
    }

    unsafe fn attach(
        segment: *mut pg_sys::dsm_segment,
        outgoing: *mut pg_sys::shm_mq,
        incoming: *mut pg_sys::shm_mq,
    ) -> Channel {
        // SAFETY: queues in this segment, of which this process is sender and receiver; their handles live until
        // they are closed.
        unsafe {
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let [outgoing, incoming] = [outgoing, incoming]
                .map(|queue| pg_sys::shm_mq_attach(queue, segment, std::ptr::null_mut()));
            pg_sys::MemoryContextSwitchTo(context);
            Channel {
                segment,
                outgoing,
                incoming,
            }
        }
    }

    /// By what the other process finds it.
    pub fn handle(&self) -> u32 {
        // SAFETY: mapped as long as this value lives.
        unsafe { pg_sys::dsm_segment_handle(self.segment) }
    }

    /// From now on the leader is told when `worker` ends before it has opened its side.
    pub fn watch(&mut self, worker: *mut pg_sys::BackgroundWorkerHandle) {
        // SAFETY: queues that are attached, a process that was registered with this one to be notified.
        unsafe {
            pg_sys::shm_mq_set_handle(self.outgoing, worker);
            pg_sys::shm_mq_set_handle(self.incoming, worker);
        }
    }

    /// Whether the other process has opened its side.
    pub fn is_open(&self) -> bool {
        // SAFETY: a queue that is attached.
        unsafe { !pg_sys::shm_mq_get_receiver(pg_sys::shm_mq_get_queue(self.outgoing)).is_null() }
    }

    /// Sends as much as there is room for.
    pub fn send(&mut self, message: &[u8]) -> Sent {
        self.send_how(message, true)
    }

    /// Waits until it is sent; for a writer. False: the leader has gone.
    pub fn send_all(&mut self, message: &[u8]) -> bool {
        self.send_how(message, false) == Sent::Whole
    }

    fn send_how(&mut self, message: &[u8], at_once: bool) -> Sent {
        // SAFETY: a queue that is attached, this process its sender; the message is copied.
        let result = unsafe {
            pg_sys::shm_mq_send(
                self.outgoing,
                message.len(),
                message.as_ptr().cast(),
                at_once,
                true,
            )
        };
        match result {
            pg_sys::shm_mq_result::SHM_MQ_SUCCESS => Sent::Whole,
            pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => Sent::InPart,
            _ => Sent::Gone,
        }
    }

    /// The next message, if it is there.
    pub fn receive(&mut self) -> Received {
        let (mut length, mut data) = (0, std::ptr::null_mut());
        // SAFETY: a queue that is attached, this process its receiver; what it gives is good until the next call.
        unsafe {
            match pg_sys::shm_mq_receive(self.incoming, &mut length, &mut data, true) {
                pg_sys::shm_mq_result::SHM_MQ_SUCCESS => Received::Message(
                    std::slice::from_raw_parts(data.cast::<u8>(), length).to_vec(),
                ),
                pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => Received::Nothing,
                _ => Received::Gone,
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // an ERROR is on its way: the process ends, or the transaction's abort detaches
        }
        // SAFETY: closed once; the other side sees its queues detached.
        unsafe {
            pg_sys::shm_mq_detach(self.outgoing);
            pg_sys::shm_mq_detach(self.incoming);
            pg_sys::dsm_detach(self.segment);
        }
    }
}
