//! A product that speaks to the internet for as long as it can, and what of it arrives there.

use std::time::Duration;

use crate::installed::{Live, Shop};

/// Keeps one connection open to the internet and speaks ten times a second, as soon as it can.
pub const STREAMER: &str = r"(while :; do
  (while :; do echo tick; sleep 0.1; done) | nc -w 1 203.0.113.10 80 > /dev/null 2>&1
done) &
mkdir -p /data/www && echo hello > /data/www/index.html && exec httpd -f -p 8090 -h /data/www";

/// Whatever was connected in the gap says nothing any more once the end is proven.
pub async fn silent_since_end(shop: &Shop, live: &Live, before: u64) {
    let spoken = || -> (usize, u64) {
        let hits = shop.vitrine.hits_from(std::slice::from_ref(&live.ip), before);
        let streams: Vec<_> = hits.iter().filter(|hit| hit.bytes > 0).collect();
        (streams.len(), streams.iter().map(|hit| hit.bytes).sum())
    };
    let first = spoken();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(spoken(), first, "streams and their bytes after the proven end");
    println!(
        "{}: {} streams were opened in the gap, all are dead",
        live.name, first.0
    );
}
