package installer

import "context"

// Status reports the host's state and changes nothing. It runs the self-test only if everything else is ok.
func Status(ctx context.Context, c *Config) (*Report, error) {
	report, err := c.inspect()
	if err != nil {
		return nil, err
	}
	complete := report.Foreign == ""
	for _, row := range report.Rows {
		complete = complete && row.State == OK
	}
	if complete {
		result := c.selfTestUntil(ctx, 0)
		report.SelfTest = &result
	}
	report.conclude()
	return report, nil
}

// inspect is Status without the self-test.
func (c *Config) inspect() (*Report, error) {
	report := &Report{}
	wanted, err := c.wanted()
	if err != nil {
		return nil, err
	}
	for _, key := range wanted {
		rows, err := key.compare()
		if err != nil {
			return nil, err
		}
		report.Rows = append(report.Rows, rows...)
	}
	dll, err := c.checkDLL()
	if err != nil {
		return nil, err
	}
	report.Rows = append(report.Rows, dll)
	if report.Foreign, err = c.foreign(); err != nil {
		return nil, err
	}
	if report.Leftovers, err = c.leftovers(c.dllPath()); err != nil {
		return nil, err
	}
	if report.Journal, err = c.journalEntries(); err != nil {
		return nil, err
	}
	present, err := keyExists(c.COMClasses)
	if err != nil {
		return nil, err
	}
	if !present {
		report.Notes = append(report.Notes, "the Containers feature is not enabled on this host: HKLM\\"+c.COMClasses+
			" does not exist; enable the feature and restart the host")
	}
	return report, nil
}
