package ad

import _ "github.com/ccgrkc/ccgrkc/internal/directory"
