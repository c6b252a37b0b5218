package inventory

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/ccgrkc/ccgrkc/internal/kubeclient"
)

// Exec runs a program in a container of a pod and returns its output, at most 1 MiB of each stream. An exit code other
// than 0 is not an error.
func (c *Cluster) Exec(ctx context.Context, namespace, pod, container string, argv ...string) (stdout, stderr []byte,
	code int, _ error) {
	options := &corev1.PodExecOptions{
		Container: container,
		Command:   argv,
		Stdout:    true,
		Stderr:    true,
	}
	req := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(options, kubeclient.ParameterCodec)
	// More proxies support WebSocket. API servers before 1.29 support only SPDY.
	websocket, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", req.URL().String())
	if err != nil {
		return nil, nil, 0, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.Config, "POST", req.URL())
	if err != nil {
		return nil, nil, 0, err
	}
	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, nil, 0, err
	}
	var out, errOut limitedBuffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	var exit utilexec.CodeExitError
	switch {
	case errors.As(err, &exit):
		return out.Bytes(), errOut.Bytes(), exit.Code, nil
	case err != nil && ctx.Err() != nil:
		return out.Bytes(), errOut.Bytes(), 0, fmt.Errorf("%s in pod %s/%s did not exit in time: %w", argv[0],
			namespace, pod, ctx.Err())
	}
	return out.Bytes(), errOut.Bytes(), 0, err
}

// limitedBuffer keeps the first MiB and discards the rest.
type limitedBuffer struct{ bytes.Buffer }

func (l *limitedBuffer) Write(b []byte) (int, error) {
	room := max(0, 1<<20-l.Len())
	l.Buffer.Write(b[:min(len(b), room)])
	return len(b), nil
}
