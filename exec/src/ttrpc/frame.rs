use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Size of a frame's header.
pub const HEADER_SIZE_BYTES: usize = 10;

/// Largest payload, the limit all implementations of the protocol share.
pub const PAYLOAD_MAX_BYTES: usize = 4 << 20;

/// A read buffer grows with what arrives, so a header alone claims little memory.
const READ_STEP_BYTES: usize = 64 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call.
    Request,
    /// The end of a call.
    Response,
    /// A message within a streaming call.
    Data,
    /// Not known here; receivers skip it.
    Other(u8),
}

impl Kind {
    fn from_wire(value: u8) -> Self {
        match value {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Data,
            other => Kind::Other(other),
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Data => 3,
            Kind::Other(other) => other,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The call it belongs to; odd when the client opened it.
    pub stream: u32,
    /// What it carries.
    pub kind: Kind,
    /// Bits 1: the sender is done, 2: more follows, 4: no data.
    pub flags: u8,
    /// At most [`PAYLOAD_MAX_BYTES`].
    pub payload: Vec<u8>,
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The other side closed between two frames.
    #[error("connection closed")]
    Closed,
    /// A payload over the limit; it was skipped and the connection is still good.
    #[error("frame of {size_bytes} bytes exceeds {PAYLOAD_MAX_BYTES}")]
    TooLarge {
        /// The call it belongs to.
        stream: u32,
        /// Size announced.
        size_bytes: u32,
    },
    /// The connection failed, or ended within a frame.
    #[error("read frame")]
    Io(#[from] io::Error),
}

impl Frame {
    /// Header and payload as they go over the wire.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLarge`].
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        if self.payload.len() > PAYLOAD_MAX_BYTES {
            let size_bytes = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
            return Err(FrameError::TooLarge { stream: self.stream, size_bytes });
        }
        let mut wire = Vec::with_capacity(HEADER_SIZE_BYTES + self.payload.len());
        wire.extend_from_slice(&(self.payload.len() as u32).to_be_bytes());
        wire.extend_from_slice(&self.stream.to_be_bytes());
        wire.push(self.kind.to_wire());
        wire.push(self.flags);
        wire.extend_from_slice(&self.payload);
        Ok(wire)
    }
}

/// Reads frames from a stream of bytes.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        FrameReader { inner }
    }

    /// The next frame. Not cancel safe: dropping the future may lose bytes.
    ///
    /// # Errors
    ///
    /// See [`FrameError`]; only after [`FrameError::TooLarge`] may reading go on.
    pub async fn next(&mut self) -> Result<Frame, FrameError> {
        let mut header = [0; HEADER_SIZE_BYTES];
        if self.inner.read(&mut header[..1]).await? == 0 {
            return Err(FrameError::Closed);
        }
        self.inner.read_exact(&mut header[1..]).await?;
        let size_bytes = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let stream = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if size_bytes as usize > PAYLOAD_MAX_BYTES {
            self.skip(size_bytes as usize).await?;
            return Err(FrameError::TooLarge { stream, size_bytes });
        }
        let payload = self.payload(size_bytes as usize).await?;
        Ok(Frame { stream, kind: Kind::from_wire(header[8]), flags: header[9], payload })
    }

    async fn payload(&mut self, size: usize) -> io::Result<Vec<u8>> {
        let mut payload = Vec::with_capacity(size.min(READ_STEP_BYTES));
        while payload.len() < size {
            let start = payload.len();
            payload.resize(size.min(start + READ_STEP_BYTES), 0);
            self.inner.read_exact(&mut payload[start..]).await?;
        }
        Ok(payload)
    }

    async fn skip(&mut self, mut left: usize) -> io::Result<()> {
        let mut waste = vec![0; READ_STEP_BYTES];
        while left > 0 {
            let step = left.min(waste.len());
            self.inner.read_exact(&mut waste[..step]).await?;
            left -= step;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: Vec<u8>) -> Frame {
        Frame { stream: 7, kind: Kind::Request, flags: 0, payload }
    }

    #[tokio::test]
    async fn what_was_encoded_is_read_back() {
        for size in [0, 1, READ_STEP_BYTES, READ_STEP_BYTES + 1, PAYLOAD_MAX_BYTES] {
            let frame = frame(vec![0xa5; size]);
            let wire = frame.encode().unwrap();
            let mut reader = FrameReader::new(wire.as_slice());
            assert_eq!(reader.next().await.unwrap(), frame);
            assert!(matches!(reader.next().await, Err(FrameError::Closed)));
        }
    }

    #[tokio::test]
    async fn an_oversized_frame_is_skipped_and_the_next_one_read() {
        let size = PAYLOAD_MAX_BYTES as u32 + 1;
        let mut wire = size.to_be_bytes().to_vec();
        wire.extend_from_slice(&[0, 0, 0, 9, 1, 0]);
        wire.resize(HEADER_SIZE_BYTES + size as usize, 0);
        wire.extend(frame(vec![1]).encode().unwrap());
        let mut reader = FrameReader::new(wire.as_slice());
        let error = reader.next().await.unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { stream: 9, .. }), "{error}");
        assert_eq!(reader.next().await.unwrap(), frame(vec![1]));
    }

    #[tokio::test]
    async fn every_cut_of_a_frame_is_an_error_and_never_a_frame() {
        let wire = frame(b"payload".to_vec()).encode().unwrap();
        for cut in 1..wire.len() {
            let error = FrameReader::new(&wire[..cut]).next().await.unwrap_err();
            assert!(matches!(error, FrameError::Io(_)), "{cut}: {error}");
        }
    }

    #[test]
    fn too_large_a_payload_is_not_encoded() {
        let error = frame(vec![0; PAYLOAD_MAX_BYTES + 1]).encode().unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }));
    }
}
