package credspec

import (
	"bytes"
	"encoding/json"
)

// GrantUse returns what lets the pods of a ServiceAccount use one GMSACredentialSpec: a List of a ClusterRole and a
// RoleBinding in the ServiceAccount's namespace, as JSON on one line. kubectl create clusterrole refuses the verb use, so
// that a command which grants it must bring the objects along; the JSON holds no single quote and can stand between two.
func GrantUse(credentialSpec, namespace, serviceAccount string) []byte {
	type object = map[string]any
	const group = "rbac.authorization.k8s.io"
	role := "gmsa-" + credentialSpec
	list, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "List",
		"items": []object{
			{
				"apiVersion": group + "/v1", "kind": "ClusterRole",
				"metadata": object{"name": role},
				"rules": []object{{
					"apiGroups": []string{"windows.k8s.io"}, "resources": []string{"gmsacredentialspecs"},
					"resourceNames": []string{credentialSpec}, "verbs": []string{"use"},
				}},
			},
			{
				"apiVersion": group + "/v1", "kind": "RoleBinding",
				// No name of the two has a colon, so that two bindings never have the same name.
				"metadata": object{"name": role + ":" + serviceAccount, "namespace": namespace},
				"roleRef":  object{"apiGroup": group, "kind": "ClusterRole", "name": role},
				"subjects": []object{{"kind": "ServiceAccount", "name": serviceAccount, "namespace": namespace}},
			},
		},
	})
	if err != nil {
		panic(err) // texts always encode
	}
	return bytes.ReplaceAll(list, []byte("'"), []byte(`\u0027`))
}
