package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volumeRefresh is the interval at which volumes are updated. A real kubelet needs up to a minute.
const volumeRefresh = 2 * time.Second

// projection is the content of a volume: files by path, with slashes.
type projection map[string]projected

type projected struct {
	content []byte
	mode    fs.FileMode
}

// token is a projected service account token. It is renewed at 80 % of its lifetime.
type token struct {
	content []byte
	renewAt time.Time
}

// makeVolumes creates or updates the pod's volumes and stores their directories in p.volumes.
func (p *pod) makeVolumes(ctx context.Context) error {
	spec := p.latest()
	for _, v := range spec.Spec.Volumes {
		if err := p.makeVolume(ctx, spec, v); err != nil {
			return fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)
		}
	}
	return nil
}

func (p *pod) makeVolume(ctx context.Context, spec *corev1.Pod, v corev1.Volume) error {
	dir := filepath.Join(p.dir, "volumes", v.Name)
	if v.HostPath != nil {
		dir = v.HostPath.Path
		if p.node.o.Wine != nil {
			dir = p.node.o.Wine.UnixPath(dir)
		}
		p.setVolume(v.Name, dir)
		return hostPath(dir, v.HostPath)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	p.setVolume(v.Name, dir)
	files := projection{}
	var err error
	mode := int32(0o644)
	switch {
	case v.EmptyDir != nil:
		return os.Chmod(dir, 0o777)
	case v.Secret != nil:
		mode = deref(v.Secret.DefaultMode, mode)
		err = p.projectSecret(ctx, files, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, mode)
	case v.ConfigMap != nil:
		mode = deref(v.ConfigMap.DefaultMode, mode)
		err = p.projectConfigMap(ctx, files, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, mode)
	case v.DownwardAPI != nil:
		mode = deref(v.DownwardAPI.DefaultMode, mode)
		err = p.projectDownward(spec, files, v.DownwardAPI.Items, mode)
	case v.Projected != nil:
		mode = deref(v.Projected.DefaultMode, mode)
		for _, s := range v.Projected.Sources {
			switch {
			case s.ServiceAccountToken != nil:
				err = p.projectToken(ctx, spec, files, v.Name, s.ServiceAccountToken, mode)
			case s.Secret != nil:
				err = p.projectSecret(ctx, files, s.Secret.Name, s.Secret.Items, s.Secret.Optional, mode)
			case s.ConfigMap != nil:
				err = p.projectConfigMap(ctx, files, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, mode)
			case s.DownwardAPI != nil:
				err = p.projectDownward(spec, files, s.DownwardAPI.Items, mode)
			default:
				err = errors.New("the lab's kubelet does not support this source")
			}
			if err != nil {
				break
			}
		}
	default:
		err = errors.New("the lab's kubelet does not support this kind of volume")
	}
	if err != nil {
		return err
	}
	return files.write(dir)
}

func hostPath(dir string, source *corev1.HostPathVolumeSource) error {
	kind := deref(source.Type, corev1.HostPathUnset)
	info, err := os.Stat(dir)
	switch kind {
	case corev1.HostPathUnset:
		// Containerd creates a missing directory.
		if err != nil {
			return os.MkdirAll(dir, 0o755)
		}
		return nil
	case corev1.HostPathDirectoryOrCreate:
		return os.MkdirAll(dir, 0o755)
	case corev1.HostPathDirectory, corev1.HostPathFile:
		if err != nil {
			return fmt.Errorf("hostPath type check failed: %w", err)
		}
		if info.IsDir() != (kind == corev1.HostPathDirectory) {
			return fmt.Errorf("hostPath type check failed: %s is not a %s", source.Path, kind)
		}
		return nil
	}
	return fmt.Errorf("the lab's kubelet does not support a hostPath of type %s", kind)
}

func (p *pod) projectSecret(ctx context.Context, files projection, name string, items []corev1.KeyToPath,
	optional *bool, mode int32) error {
	secret, err := p.node.client.CoreV1().Secrets(p.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && deref(optional, false) {
		return nil
	}
	if err != nil {
		return err
	}
	return files.keys("secret", name, secret.Data, items, deref(optional, false), mode)
}

func (p *pod) projectConfigMap(ctx context.Context, files projection, name string, items []corev1.KeyToPath,
	optional *bool, mode int32) error {
	configMap, err := p.node.client.CoreV1().ConfigMaps(p.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && deref(optional, false) {
		return nil
	}
	if err != nil {
		return err
	}
	data := maps.Clone(configMap.BinaryData)
	if data == nil {
		data = map[string][]byte{}
	}
	for key, value := range configMap.Data {
		data[key] = []byte(value)
	}
	return files.keys("configmap", name, data, items, deref(optional, false), mode)
}

func (files projection) keys(kind, name string, data map[string][]byte, items []corev1.KeyToPath,
	optional bool, mode int32) error {
	if items == nil {
		for key, value := range data {
			files[key] = projected{value, fs.FileMode(mode)}
		}
	}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok && optional {
			continue
		}
		if !ok {
			return fmt.Errorf("%s %q references non-existent key: %s", kind, name, item.Key)
		}
		files[item.Path] = projected{value, fs.FileMode(deref(item.Mode, mode))}
	}
	return nil
}

func (p *pod) projectDownward(spec *corev1.Pod, files projection, items []corev1.DownwardAPIVolumeFile,
	mode int32) error {
	for _, item := range items {
		if item.FieldRef == nil {
			return fmt.Errorf("%s: the lab's kubelet does not support resource limits", item.Path)
		}
		value, err := p.field(spec, item.FieldRef.FieldPath)
		if err != nil {
			return err
		}
		files[item.Path] = projected{[]byte(value), fs.FileMode(deref(item.Mode, mode))}
	}
	return nil
}

func (p *pod) projectToken(ctx context.Context, spec *corev1.Pod, files projection, volume string,
	source *corev1.ServiceAccountTokenProjection, mode int32) error {
	key := volume + "/" + source.Path
	t := p.tokens[key]
	if t == nil || time.Now().After(t.renewAt) {
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: source.ExpirationSeconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind:       "Pod",
				APIVersion: "v1",
				Name:       p.name,
				UID:        p.uid,
			},
		}}
		if source.Audience != "" {
			request.Spec.Audiences = []string{source.Audience}
		}
		asked := time.Now()
		accounts := p.node.client.CoreV1().ServiceAccounts(p.namespace)
		answer, err := accounts.CreateToken(ctx, spec.Spec.ServiceAccountName, request, metav1.CreateOptions{})
		switch {
		case err == nil:
			life := answer.Status.ExpirationTimestamp.Sub(asked)
			t = &token{[]byte(answer.Status.Token), asked.Add(life * 8 / 10)}
			p.tokens[key] = t
		case t == nil:
			return fmt.Errorf("failed to fetch token: %w", err)
		}
		// If the renewal fails, the old token stays in use until a later renewal succeeds.
	}
	files[source.Path] = projected{t.content, fs.FileMode(mode)}
	return nil
}

// refreshVolumes updates the volumes from their objects until the pod ends.
func (p *pod) refreshVolumes(ctx context.Context) {
	live := slices.ContainsFunc(p.latest().Spec.Volumes, func(v corev1.Volume) bool {
		return v.Secret != nil || v.ConfigMap != nil || v.Projected != nil || v.DownwardAPI != nil
	})
	for live && sleep(ctx, volumeRefresh) {
		// A failed update leaves the volume unchanged.
		_ = p.makeVolumes(ctx)
	}
}

// write updates a volume atomically, as a kubelet does: it writes a new directory and then renames the link ..data,
// which is part of every file's path. Readers see either the old or the new content.
func (files projection) write(dir string) error {
	const data, next = "..data", "..data_tmp"
	if files.equals(filepath.Join(dir, data)) {
		return nil
	}
	version, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := os.Chmod(version, 0o755); err != nil {
		return err
	}
	for path, file := range files {
		if !filepath.IsLocal(path) {
			return fmt.Errorf("the path %q is outside the volume", path)
		}
		full := filepath.Join(version, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, file.content, file.mode); err != nil {
			return err
		}
		if err := os.Chmod(full, file.mode); err != nil { // independent of the umask
			return err
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, data)) // missing at first
	if err := os.RemoveAll(filepath.Join(dir, next)); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Base(version), filepath.Join(dir, next)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, next), filepath.Join(dir, data)); err != nil {
		return err
	}
	visible := map[string]bool{}
	for path := range files {
		top, _, _ := strings.Cut(path, "/")
		visible[top] = true
		err := os.Symlink(filepath.Join(data, top), filepath.Join(dir, top))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !visible[e.Name()] && e.Type() == os.ModeSymlink && e.Name() != data {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if old != "" {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

func (files projection) equals(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	found := 0
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		found++
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if want, ok := files[name]; err == nil && (!ok || !bytes.Equal(content, want.content)) {
			return errors.New("differs")
		}
		return err
	})
	return err == nil && found == len(files)
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
