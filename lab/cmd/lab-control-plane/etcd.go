package main

import (
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// etcdEndpoint is a Unix socket in the working directory, because another process could use a port.
const etcdEndpoint = "unix://etcd.sock"

func startEtcd(ended chan<- error) error {
	wal.SegmentSizeBytes = 4 << 20 // each start copies the log, which is as long as a segment
	config := embed.NewConfig()
	config.Dir = "etcd"
	config.LogLevel = "error"
	// A crash of the machine can lose data of the lab; a crash of the process cannot.
	config.UnsafeNoFsync = true
	// A lone member need not wait for others before it elects itself. Milliseconds.
	config.TickMs, config.ElectionMs = 50, 500
	client, peer := url.URL{Scheme: "unix", Host: "etcd.sock"}, url.URL{Scheme: "unix", Host: "etcd-peer.sock"}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("etcd does not start: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		return fmt.Errorf("etcd does not start: %w", err)
	}
	go func() { ended <- fmt.Errorf("etcd ended: %w", <-etcd.Err()) }()
	return nil
}
