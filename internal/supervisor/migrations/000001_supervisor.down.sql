DROP TABLE supervisor_acts;
