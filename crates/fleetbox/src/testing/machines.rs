//! Owns what a test takes: a VM, several, or a cluster. It must not start them.

use crate::cluster::Cluster;
use crate::vm::Vm;

/// Members of a [`Cluster`] that a test takes without saying how many.
pub(super) const CLUSTER_VMS: usize = 3;

/// What the body of a test takes: one [`Vm`], a tuple of up to six that share a network, or a [`Cluster`].
/// It cannot be implemented for others.
///
/// ```
/// fn accepts<T: fleetbox::testing::Machines>() {}
/// accepts::<fleetbox::Vm>();
/// accepts::<(fleetbox::Vm, fleetbox::Vm)>();
/// accepts::<fleetbox::Cluster>();
/// ```
pub trait Machines: sealed::Take {}

impl<T: sealed::Take> Machines for T {}

/// The machines of a test.
#[derive(Debug, Clone)]
pub enum Fleet {
    /// One that is alone.
    Vm(Vm),
    /// Several on one network.
    Cluster(Cluster),
}

impl Fleet {
    pub(super) fn vms(&self) -> Vec<Vm> {
        match self {
            Self::Vm(vm) => vec![vm.clone()],
            Self::Cluster(cluster) => cluster.vms(),
        }
    }

    /// All there are now: a body may have added some.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Vm(_) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }
}

/// How many machines a body takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// One, without a cluster around it.
    One,
    /// So many.
    Several(usize),
    /// As many as the test says.
    Any,
}

pub(super) mod sealed {
    use super::{Cluster, Count, Fleet, Vm};

    pub trait Take: Sized {
        const COUNT: Count;
        /// `fleet` is what [`COUNT`](Self::COUNT) asked for.
        fn take(fleet: Fleet) -> Self;
    }

    impl Take for Vm {
        const COUNT: Count = Count::One;

        fn take(fleet: Fleet) -> Self {
            let [vm] = all(&fleet);
            vm
        }
    }

    impl Take for Cluster {
        const COUNT: Count = Count::Any;

        fn take(fleet: Fleet) -> Self {
            match fleet {
                Fleet::Cluster(cluster) => cluster,
                Fleet::Vm(_) => unreachable!("a cluster was asked for"),
            }
        }
    }

    fn all<const N: usize>(fleet: &Fleet) -> [Vm; N] {
        match fleet.vms().try_into() {
            Ok(vms) => vms,
            Err(vms) => unreachable!("{N} machines were asked for: {vms:?}"),
        }
    }

    macro_rules! tuples {
        ($($count:literal: $($vm:ident)+;)+) => {$(
            impl Take for ($(tuples!(@ $vm),)+) {
                const COUNT: Count = Count::Several($count);

                fn take(fleet: Fleet) -> Self {
                    let [$($vm),+] = all(&fleet);
                    ($($vm,)+)
                }
            }
        )+};
        (@ $vm:ident) => { Vm };
    }

    tuples! {
        2: a b;
        3: a b c;
        4: a b c d;
        5: a b c d e;
        6: a b c d e f;
    }
}
