package cluster

import (
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/ccgrkc/ccgrkc/lab/env/winnode"
)

// The product's charts.
const (
	Installer = "rancher-gmsa-plugin-installer"
	Provider  = "rancher-gmsa-account-provider"
	Webhook   = "rancher-gmsa-webhook"
)

// Chart is the directory of a chart.
func Chart(name string) string {
	return filepath.Join(filepath.Dir(winnode.Dist()), "charts", name)
}

// ChartVersion is the charts' appVersion, which is also the tag of their image.
func ChartVersion() (string, error) {
	content, err := os.ReadFile(filepath.Join(Chart(Provider), "Chart.yaml"))
	if err != nil {
		return "", err
	}
	var chart struct{ AppVersion string }
	if err := yaml.Unmarshal(content, &chart); err != nil {
		return "", fmt.Errorf("%s/Chart.yaml: %w", Provider, err)
	}
	return chart.AppVersion, nil
}
