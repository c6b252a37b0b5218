package kubelet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// The address of every node and of every pod without its own network.
const loopback = "127.0.0.1"

// field is a value of the downward API.
func (p *pod) field(spec *corev1.Pod, path string) (string, error) {
	switch path {
	case "spec.nodeName":
		return spec.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return spec.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return loopback, nil
	case "status.podIP", "status.podIPs":
		return p.ip(), nil
	}
	return fieldpath.ExtractFieldPathAsString(spec, path)
}

// environment contains the API server's address and the variables of the image and the pod, with $(NAME) expanded.
func (c *container) environment(ctx context.Context, img *image) (map[string]string, error) {
	p, spec := c.pod, c.pod.latest()
	port := strconv.Itoa(p.node.api.port())
	env := map[string]string{
		"KUBERNETES_SERVICE_HOST":       loopback,
		"KUBERNETES_SERVICE_PORT":       port,
		"KUBERNETES_SERVICE_PORT_HTTPS": port,
	}
	for _, e := range img.config.Env {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	for _, source := range c.spec.EnvFrom {
		values, err := p.envFrom(ctx, source)
		if err != nil {
			return nil, err
		}
		maps.Copy(env, values)
	}
	for _, e := range c.spec.Env {
		value := expansion.Expand(e.Value, expansion.MappingFuncFor(env))
		if e.ValueFrom != nil {
			var ok bool
			var err error
			if value, ok, err = p.envValue(ctx, spec, e.ValueFrom); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		env[e.Name] = value
	}
	return env, nil
}

func (p *pod) envFrom(ctx context.Context, source corev1.EnvFromSource) (map[string]string, error) {
	values := map[string]string{}
	switch {
	case source.SecretRef != nil:
		secret, err := p.node.client.CoreV1().Secrets(p.namespace).Get(ctx, source.SecretRef.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) && deref(source.SecretRef.Optional, false) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for key, value := range secret.Data {
			values[source.Prefix+key] = string(value)
		}
	case source.ConfigMapRef != nil:
		configMaps := p.node.client.CoreV1().ConfigMaps(p.namespace)
		configMap, err := configMaps.Get(ctx, source.ConfigMapRef.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) && deref(source.ConfigMapRef.Optional, false) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for key, value := range configMap.Data {
			values[source.Prefix+key] = value
		}
	}
	return values, nil
}

func (p *pod) envValue(ctx context.Context, spec *corev1.Pod, source *corev1.EnvVarSource) (string, bool, error) {
	switch {
	case source.FieldRef != nil:
		value, err := p.field(spec, source.FieldRef.FieldPath)
		return value, true, err
	case source.SecretKeyRef != nil:
		ref := source.SecretKeyRef
		secret, err := p.node.client.CoreV1().Secrets(p.namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err == nil {
			if value, ok := secret.Data[ref.Key]; ok {
				return string(value), true, nil
			}
			err = fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, p.namespace, ref.Name)
		} else if !apierrors.IsNotFound(err) {
			return "", false, err
		}
		if deref(ref.Optional, false) {
			err = nil
		}
		return "", false, err
	case source.ConfigMapKeyRef != nil:
		ref := source.ConfigMapKeyRef
		configMap, err := p.node.client.CoreV1().ConfigMaps(p.namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err == nil {
			if value, ok := configMap.Data[ref.Key]; ok {
				return value, true, nil
			}
			err = fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, p.namespace, ref.Name)
		} else if !apierrors.IsNotFound(err) {
			return "", false, err
		}
		if deref(ref.Optional, false) {
			err = nil
		}
		return "", false, err
	case source.ResourceFieldRef != nil:
		return "0", true, nil // no limits are enforced
	}
	return "", false, nil
}

// command is the container's program and arguments.
func (c *container) command(img *image, env map[string]string) ([]string, error) {
	command, args := c.spec.Command, c.spec.Args
	if len(command) == 0 {
		command = img.config.Entrypoint
		if len(args) == 0 {
			args = img.config.Cmd
		}
	}
	argv := slices.Concat(command, args)
	if len(argv) == 0 {
		return nil, fmt.Errorf("no command specified in the container or in the image %s", c.spec.Image)
	}
	for i, arg := range argv {
		argv[i] = expansion.Expand(arg, expansion.MappingFuncFor(env))
	}
	return argv, nil
}

func environ(env map[string]string) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list
}
