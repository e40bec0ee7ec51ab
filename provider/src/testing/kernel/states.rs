//! Which changes of a QP's state the kernel lets through, by the attributes that come with them.
//! Called by the mock's own `modify_qp`.

use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::verbs::*;

/// May a datagram QP (`ud`) or a reliable connection go from one state to another with the attributes
/// of `mask`? Some must come with it, some may, and no other.
pub fn legal(ud: bool, from: u32, to: u32, mask: u32) -> bool {
    let Some((required, optional)) = attributes(ud, from, to) else { return false };
    let mask = mask & !PVRDMA_QP_STATE;
    mask & required == required && mask & !(required | optional) == 0
}

/// What must and what may come with a change; `None`: there is no such change.
pub fn attributes(ud: bool, from: u32, to: u32) -> Option<(u32, u32)> {
    const PORT: u32 = PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT;
    const RETRY: u32 = PVRDMA_QP_TIMEOUT | PVRDMA_QP_RETRY_CNT | PVRDMA_QP_RNR_RETRY;
    const READY: u32 = PVRDMA_QP_CUR_STATE
        | PVRDMA_QP_ALT_PATH
        | PVRDMA_QP_ACCESS_FLAGS
        | PVRDMA_QP_MIN_RNR_TIMER
        | PVRDMA_QP_PATH_MIG_STATE;
    Some(match (from, to) {
        (_, IBV_QPS_RESET) => (0, 0),
        (IBV_QPS_RESET, IBV_QPS_INIT) if ud => (PORT | PVRDMA_QP_QKEY, 0),
        (IBV_QPS_RESET, IBV_QPS_INIT) => (PORT | PVRDMA_QP_ACCESS_FLAGS, 0),
        (IBV_QPS_RESET, _) => return None,
        (_, IBV_QPS_ERR) => (0, 0),
        (IBV_QPS_INIT, IBV_QPS_INIT) if ud => (0, PORT | PVRDMA_QP_QKEY),
        (IBV_QPS_INIT, IBV_QPS_INIT) => (0, PORT | PVRDMA_QP_ACCESS_FLAGS),
        (IBV_QPS_INIT, IBV_QPS_RTR) if ud => (0, PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_QKEY),
        (IBV_QPS_INIT, IBV_QPS_RTR) => (
            PVRDMA_QP_AV
                | PVRDMA_QP_PATH_MTU
                | PVRDMA_QP_DEST_QPN
                | PVRDMA_QP_RQ_PSN
                | PVRDMA_QP_MAX_DEST_RD_ATOMIC
                | PVRDMA_QP_MIN_RNR_TIMER,
            PVRDMA_QP_ALT_PATH | PVRDMA_QP_ACCESS_FLAGS | PVRDMA_QP_PKEY_INDEX,
        ),
        (IBV_QPS_RTR, IBV_QPS_RTS) if ud => (PVRDMA_QP_SQ_PSN, PVRDMA_QP_CUR_STATE | PVRDMA_QP_QKEY),
        (IBV_QPS_RTR, IBV_QPS_RTS) => (RETRY | PVRDMA_QP_SQ_PSN | PVRDMA_QP_MAX_QP_RD_ATOMIC, READY),
        (IBV_QPS_RTS | IBV_QPS_SQD, IBV_QPS_RTS) if ud => (0, PVRDMA_QP_CUR_STATE | PVRDMA_QP_QKEY),
        (IBV_QPS_RTS | IBV_QPS_SQD, IBV_QPS_RTS) => (0, READY),
        (IBV_QPS_RTS, IBV_QPS_SQD) => (0, PVRDMA_QP_EN_SQD_ASYNC_NOTIFY),
        (IBV_QPS_SQD, IBV_QPS_SQD) if ud => (0, PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_QKEY),
        (IBV_QPS_SQD, IBV_QPS_SQD) => (0, PORT | RETRY | PVRDMA_QP_AV | READY & !PVRDMA_QP_CUR_STATE),
        (IBV_QPS_SQE, IBV_QPS_RTS) if ud => (0, PVRDMA_QP_CUR_STATE | PVRDMA_QP_QKEY),
        (IBV_QPS_SQE, IBV_QPS_RTS) => (0, 0),
        _ => return None,
    })
}
