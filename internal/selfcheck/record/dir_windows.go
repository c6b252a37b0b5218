package record

import "github.com/ccgrkc/ccgrkc/internal/winsec"

func secureDir(path string) error { return winsec.SecureDir(path, winsec.DirAdminOnly) }
