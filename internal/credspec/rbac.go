package credspec

import (
	"bytes"
	"encoding/json"
)

// UseRBACManifest returns the RBAC objects that grant a ServiceAccount the `use` permission on one GMSACredentialSpec:
// a ClusterRole, and a RoleBinding in the ServiceAccount's namespace. The result is a List in JSON, on one line and
// without single quotes, so that a shell command can contain it between single quotes. Commands need the complete
// objects because `kubectl create clusterrole` rejects the verb `use`.
func UseRBACManifest(credentialSpec, namespace, serviceAccount string) []byte {
	type object = map[string]any
	const group = "rbac.authorization.k8s.io"
	role := "gmsa-" + credentialSpec
	list, err := json.Marshal(object{
		"apiVersion": "v1",
		"kind":       "List",
		"items": []object{
			{
				"apiVersion": group + "/v1",
				"kind":       "ClusterRole",
				"metadata":   object{"name": role},
				"rules": []object{{
					"apiGroups":     []string{"windows.k8s.io"},
					"resources":     []string{"gmsacredentialspecs"},
					"resourceNames": []string{credentialSpec},
					"verbs":         []string{"use"},
				}},
			},
			{
				"apiVersion": group + "/v1",
				"kind":       "RoleBinding",
				"metadata": object{
					// Neither name can contain a colon, so two bindings cannot have the same name.
					"name":      role + ":" + serviceAccount,
					"namespace": namespace,
				},
				"roleRef": object{
					"apiGroup": group,
					"kind":     "ClusterRole",
					"name":     role,
				},
				"subjects": []object{{
					"kind":      "ServiceAccount",
					"name":      serviceAccount,
					"namespace": namespace,
				}},
			},
		},
	})
	if err != nil {
		panic(err) // strings always encode
	}
	return bytes.ReplaceAll(list, []byte("'"), []byte(`\u0027`))
}
