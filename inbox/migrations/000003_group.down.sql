DROP TABLE inbox_group;
