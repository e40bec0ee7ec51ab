//! A guest that lies, over the real socket: command slots, shared regions, registers, doorbells and configuration space
//! full of rubbish. Its server goes on serving the guests beside it, and itself once it comes to its senses.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

mod by_hand;

use std::os::unix::fs::FileExt;

use by_hand::{Guest, Pair, RAM, Region, hdr, joined, servers};
use pvrdma_device::testing::rng::Rng;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use zerocopy::IntoBytes;

const REG: u32 = PVRDMA_PCI_RESOURCE_REG as u32;
const UAR: u32 = PVRDMA_PCI_RESOURCE_UAR as u32;
const CONFIG: u32 = 7;
const PAGE: u64 = 4096;

/// A number that means something to somebody: a handle, a limit, an address, or just any.
fn number(rng: &mut Rng) -> u32 {
    match rng.below(6) {
        0 | 1 => rng.below(8) as u32,
        2 => 1 << rng.below(32),
        3 => (1u32 << rng.below(32)).wrapping_sub(1),
        4 => (rng.below(RAM / PAGE) * PAGE) as u32,
        _ => rng.word() as u32,
    }
}

/// A request of which every word is a number of that kind.
fn rubbish_command(rng: &mut Rng, directory: u64) -> [u8; 184] {
    let mut request = [0; 184];
    for word in request.as_chunks_mut::<4>().0 {
        *word = number(rng).to_le_bytes();
    }
    // Mostly one of the commands there are.
    let cmd = if rng.one_in(8) { number(rng) } else { rng.below(21) as u32 };
    request[8..12].copy_from_slice(&cmd.to_le_bytes());
    if rng.one_in(2) {
        // A directory that leads somewhere, where commands have theirs.
        let at = if cmd == PVRDMA_CMD_CREATE_MR { 32 } else { 16 };
        request[at..at + 8].copy_from_slice(&directory.to_le_bytes());
    }
    request
}

/// A shared region of which each field may be what it should or anything.
fn rubbish_dsr(rng: &mut Rng, guest: &mut Guest, pages: u64) {
    let mut region = pvrdma_device_shared_region {
        driver_version: PVRDMA_VERSION,
        cmd_slot_dma: pages,
        resp_slot_dma: pages + PAGE,
        uar_pfn64: 0xfe000,
        ..Default::default()
    };
    let ring = pvrdma_ring_page_info { num_pages: 4, reserved: 0, pdir_dma: pages + 2 * PAGE };
    (region.async_ring_pages, region.cq_ring_pages) = (ring, ring);
    let bytes = region.as_mut_bytes();
    for _ in 0..rng.below(3) {
        let at = rng.below(18) as usize * 4;
        bytes[at..at + 4].copy_from_slice(&number(rng).to_le_bytes());
    }
    let at = pages + 3 * PAGE;
    guest.ram.write_all_at(bytes, at).unwrap();
    let at = if rng.one_in(4) { u64::from(number(rng)) } else { at };
    guest.set(PVRDMA_REG_DSRLOW, at as u32);
    let high = if rng.one_in(8) { number(rng) } else { 0 };
    guest.set(PVRDMA_REG_DSRHIGH, high);
}

/// The other guests' traffic goes on.
fn others_go_on([a, b]: &mut [(Guest, Pair, Region); 2], n: u64) {
    let word = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    a.0.ram.write_all_at(&word, Guest::place(&a.2, 8)).unwrap();
    let from = Region { addr: a.2.addr + 8, ..a.2 };
    a.0.post_write(&mut a.1, n, &from, &b.2, 8);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (n, PVRDMA_WC_SUCCESS));
    let mut arrived = [0; 8];
    b.0.ram.read_exact_at(&mut arrived, Guest::place(&b.2, 0)).unwrap();
    assert_eq!(arrived, word);
}

/// The liar loads an honest driver, which finds a device like new.
fn reform(liar: &mut Guest) {
    liar.client.region_write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    liar.set(PVRDMA_REG_IMR, u32::MAX);
    assert_eq!(liar.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_RESET), 0);
    liar.write_dsr();
    liar.set(PVRDMA_REG_IMR, 0);
    assert_eq!(liar.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0);
    (0..3).for_each(|vector| {
        liar.fired(vector);
    });
    let query = pvrdma_cmd_query_port { hdr: hdr(PVRDMA_CMD_QUERY_PORT), port_num: 1, ..Default::default() };
    let port: pvrdma_cmd_query_port_resp = liar.ask(&query);
    assert_eq!(port.attrs.state, PVRDMA_PORT_ACTIVE);
}

#[test]
fn rubbish_hurts_only_the_guest_it_comes_from() {
    let mut rng = Rng::from_env(5);
    let steps = pvrdma_device::testing::rng::steps(6000);
    let servers = servers(3);
    let mut others = joined(&servers, 4096);
    let mut liar = Guest::boot(&servers.paths[2], 3);
    let pages: Vec<u64> = (0..8).map(|_| liar.pages(1)).collect();
    let directory = liar.directory(&pages);
    let spare = liar.pages(4);
    let (mut done, mut refused) = (0, 0);
    for step in 0..steps {
        // QEMU, which is trusted, lets a guest reach the regions there are; in them anything.
        match rng.below(100) {
            0..60 => match liar.command(&rubbish_command(&mut rng, directory)) {
                0 => done += 1,
                _ => refused += 1,
            },
            60..80 => {
                let (offset, value) = (rng.below(0x40_1000), number(&mut rng) | 1 << (29 + rng.below(3)));
                let offset = if rng.one_in(4) { offset } else { rng.below(4) * PAGE + rng.below(4) * 4 };
                let _ = liar.client.region_write(UAR, offset, &value.to_le_bytes());
            }
            80..88 => {
                // Where rings and counters of its objects are.
                let page = *rng.pick(&pages);
                let offset = if rng.one_in(2) { rng.below(4) * 4 } else { rng.below(1024) * 4 };
                liar.ram.write_all_at(&number(&mut rng).to_le_bytes(), page + offset).unwrap();
            }
            88..94 => {
                let len = *rng.pick(&[1, 2, 4, 8, 3]);
                let bytes = rng.bytes(len);
                // Any register but the one that takes a shared region: that has its own turn.
                let offset = rng.below(0x120);
                if offset != u64::from(PVRDMA_REG_DSRHIGH) {
                    let _ = liar.client.region_write(REG, offset, &bytes);
                }
                let mut read = bytes;
                let _ = liar.client.region_read(*rng.pick(&[REG, UAR, CONFIG]), offset, &mut read);
            }
            94..96 => {
                let len = *rng.pick(&[1, 2, 4]);
                let bytes = rng.bytes(len);
                let _ = liar.client.region_write(CONFIG, rng.below(0x110), &bytes);
            }
            96 if rng.one_in(3) => {
                rubbish_dsr(&mut rng, &mut liar, spare);
                let _ = liar.set_and_err(PVRDMA_REG_CTL, number(&mut rng) % 5);
            }
            98 => {
                // Its first shared region once more, if that is still one: so that commands reach a device again.
                let _ = liar.client.region_write(CONFIG, 4, &6u16.to_le_bytes());
                liar.set(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_RESET);
                liar.write_dsr_again();
                liar.set(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE);
            }
            99 => others_go_on(&mut others, step),
            _ => {}
        }
        if liar.get(PVRDMA_REG_VERSION) != 20 {
            panic!("step {step}: the server lost its mind");
        }
    }
    println!("{steps} steps: {done} commands were carried out, {refused} refused");
    assert!(done > steps / 100 && refused > steps / 5, "{done} carried out, {refused} refused");
    others_go_on(&mut others, 1);
    reform(&mut liar);
    let (mut pair, pd) = liar.pair(1);
    let region = liar.register(pd, 4096);
    let bind = pvrdma_cmd_create_bind {
        hdr: hdr(PVRDMA_CMD_CREATE_BIND),
        mtu: 1024,
        vlan: 0xfff,
        new_gid: by_hand::gid_of(9),
        gid_type: PVRDMA_GID_TYPE_FLAG_ROCE_V2,
        ..Default::default()
    };
    assert_eq!(liar.command(&bind), 0);
    liar.join(&pair, 9, pair.qpn);
    liar.post_write(&mut pair, 7, &region, &region, 64);
    liar.ring_send(&pair);
    assert_eq!(liar.wait(&pair), (7, PVRDMA_WC_SUCCESS));
}
