package credspec

import _ "sigs.k8s.io/yaml"
